"""All runs in the browser: a page, and a small server of this machine that reads what the page shows."""
