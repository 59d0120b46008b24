"""Other programs' embedding files: reading them, writing them, describing one."""
