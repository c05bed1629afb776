"""Methods held against each other: plans in files, what a cell measures, tests of significance, pages."""
