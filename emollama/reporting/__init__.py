"""Reports about runs: report.html, comparisons and charts, from the files that the runs wrote. Does not import torch."""
