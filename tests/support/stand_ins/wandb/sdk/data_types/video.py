class Video:
    pass
