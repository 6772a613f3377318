"""DICOM in and out.

`read`: `file` reads headers and `values` their elements within limits, `groups` finds the functional groups of a frame,
`decoders`, `layout` and `pixels` decode pixels, `frame` describes an image, `stack` joins images into volumes, `find`
lists the series of folders, `series_volume` reads a series as a scan. `rt_read` and `rt_items` read structure sets.
`series` describes a series, `phi_safe` keeps patient data out of messages, `text` reads text whose character set is
declared wrongly.

`mr`: `acquisition`, `sequences` and `studies` choose the MR series for a model's channels, `resample` puts them on one
grid.

`write`: `identity` copies attributes from the source and makes references to it, `rtstruct`, `rt_append` and `seg`
write objects, `round_trip` reads them back and compares.

`contours` converts between outlines and masks, `combined` joins the contours of one slice.
"""
