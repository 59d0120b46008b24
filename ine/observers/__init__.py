"""What looks at pictures and says which concepts they show: judges, local models, servers."""
