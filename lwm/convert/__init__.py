"""Model files of other formats: opening them, reading weights onto a mesh, writing folders."""
