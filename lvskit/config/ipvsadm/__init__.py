"""The grammar of ipvsadm 1.31: words to requests, and services to the rules that make them."""
