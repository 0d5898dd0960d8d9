"""A browser as a host: what it is served, what it says of itself, and what it is given to do; `hosts/phone.py` drives it."""
