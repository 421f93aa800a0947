"""What makes the site out of the chapters: the Sphinx extension, the theme's files, what checks and what executes."""
