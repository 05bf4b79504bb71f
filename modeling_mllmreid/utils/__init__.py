"""What every room uses: errors, files, formats of files, and the processes of a run."""
