"""Videos: which file is a clip's, its frames, its sound, the faces in it."""
