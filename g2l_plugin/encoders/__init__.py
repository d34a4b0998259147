"""Image encoders: loading, running, and writing folders that timm loads."""
