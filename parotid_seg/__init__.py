"""parotid-seg: parotid gland masks from head-and-neck scans."""
