"""More than one machine, by Ray: a server's models as replicas on its nodes, a batch's requests shared out to them."""
