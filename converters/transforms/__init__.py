"""Weight transforms that leave a model's function as it is: they come before any back end, and change what rounding costs."""
