def write_report(paths, out):
    return out


def main(): ...
