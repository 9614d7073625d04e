"""What fastrnn promises about itself, measured."""
