def write(path, docs):
    pass
