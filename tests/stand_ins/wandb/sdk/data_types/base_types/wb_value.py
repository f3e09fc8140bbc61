class WBValue:
    pass
