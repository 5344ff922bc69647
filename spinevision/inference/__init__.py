"""What goes beyond ``model.predict``: folders and videos."""
