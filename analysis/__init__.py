"""What the runs say: fitted surfaces, maps, theory, pictures. Imports neither ray nor torch."""
