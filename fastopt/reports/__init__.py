"""Reports on measurements of `fastopt bench`.

`read` checks a file of measurements and returns a Run; `sections` makes tables of runs, `plots` pictures, and `page`
one document of both, in Markdown or HTML.
"""
