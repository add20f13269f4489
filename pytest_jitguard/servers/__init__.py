"""Servers under test: started, waited for, kept track of, and ended without orphans."""
