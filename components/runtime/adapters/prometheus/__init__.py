"""`prometheus+http://HOST:PORT`: what Prometheus has scraped of the versions. One file of queries a dialect."""
