"""What the jobs of the model cache run on the nodes: Python's own library, and nothing else of vllmjobs.

The modules are put into the jobs as they stand, so that any image with Python can run them; those braces
which HCL would fill in are refused by a test.
"""
