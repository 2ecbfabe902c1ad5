"""The commands of `python -m jaxconv`, each a parser and what it runs.

What stands where:

    judging      check and compare, of functions in a user's file
    replacing    manual, of a function in a user's file
    tuning       tune, of a function in a user's file
    explaining   explain, of shapes or of a function
    doctor       what is installed, and whether the rules work here
    loading      the function that path.py:function names, and its example arguments
    speaking     what is said while work goes on, and what cannot be done
"""
