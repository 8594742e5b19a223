"""Video, audio and image files: finding them, and reading frames, faces, audio and pixels."""
