"""What crosses process borders: journals today, children and servers later."""
