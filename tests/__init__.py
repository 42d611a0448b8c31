"""Tests mirror the tree; an oracle that is not us wherever there is one."""
