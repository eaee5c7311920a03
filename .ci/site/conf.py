"Sphinx's settings. build.py beside it makes the pages and starts Sphinx."
from pages import ROOT, SETTINGS

project = SETTINGS["title"]
author = SETTINGS["author"]
copyright = f"{SETTINGS['copyright'].split()[0]}, {author}"
release = SETTINGS["version"]
language = "en"

extensions = ["myst_nb", "sphinx.ext.mathjax"]
nb_execution_mode = "off" # the saved outputs are shown
nb_output_stderr = "remove"
nb_merge_streams = True
nb_render_markdown_format = "gfm" # tables
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3
mathjax_path = "mathjax.js"
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = [str(ROOT/"build"/"site"/"static")]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False # the search is better
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
