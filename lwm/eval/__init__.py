"""What a long-context model can still find: measurements that can be stopped and resumed."""
