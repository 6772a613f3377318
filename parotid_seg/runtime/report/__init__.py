"""Reports on results: flags in English, summary.csv, report.html and pictures."""
