"""What is said about results: flags in English, summary.csv, report.html and pictures."""
