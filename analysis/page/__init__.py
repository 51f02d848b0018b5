"""A map as one interactive HTML file that asks nothing of any network."""

from analysis.page.build import page_html as page_html
from analysis.page.build import write_page as write_page
