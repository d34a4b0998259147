"""Publishes the student of a run: folder, model card, licence, ONNX and upload to the Hub."""
