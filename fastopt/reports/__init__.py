"""What becomes of measurements: files read and checked (`read`), rows of tables (`sections`), plots, pages."""
