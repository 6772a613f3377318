"""DICOM in and out.

In: `file` reads a header with care, `values` its values, `groups` tells which part speaks of which image, `layout` how
pixels are stored, `frame` what an image is, `stack` which images are one volume, `find` which series there are,
`pixels` their voxels, `read` a series as a scan. `mr_acquisition`, `sequences` and `studies` tell which MR series are a
case's channels, `one_grid` puts them on one grid.

Out: `contours` and `planes` are the geometry, `identity` and `references` what an object takes from its source,
`rtstruct` (`rt_append` to one that is there) and `seg` the objects, `rt_read` and `proof` the way back. `rt_items`
tells whose contours are whose, `combined` what those of one slice enclose together.

`series` is what both sides speak of, `phi_safe` keeps what files say about patients out of messages, `text`
reads text whose character set is not the declared one.
"""
