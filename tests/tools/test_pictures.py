"""The commands that draw the pictures of the documentation."""

import subprocess
import sys

import pictures
from helpers import ROOT
from PIL import Image


def test_the_picture_of_an_index_shows_the_slide_and_its_tiles(tmp_path, write_slide):
    slide = write_slide(tmp_path / "a.tiff", size=2048)
    pictures.draw_index(slide, tmp_path / "index.jpg")
    image = Image.open(tmp_path / "index.jpg")
    assert max(image.size) <= 800
    assert slide.is_file()


def test_the_help_says_what_is_drawn():
    command = [sys.executable, ROOT / "tools" / "pictures.py", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "configs/quickstart.yaml" in shown and "--slide" in shown
