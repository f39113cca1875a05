"""What `segfast.swap` knows: which modules become which, when, and why others stay."""
