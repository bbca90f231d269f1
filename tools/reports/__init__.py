"""Tables, figures and HTML pages of commands."""
