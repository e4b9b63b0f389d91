"""A content-addressed builder and cache of environment images."""
