"""The program that the jobs of the model cache run on the nodes, with Python's own library alone.

The modules are put into the jobs as they stand, so that any image with Python can run them; they import
nothing else of vllmjobs. A test refuses the braces that HCL would fill in.
"""
