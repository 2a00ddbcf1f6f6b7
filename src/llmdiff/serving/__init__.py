"""The HTTP image API and the web page."""
