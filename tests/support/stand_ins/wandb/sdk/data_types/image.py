from wandb.sdk.data_types.base_types.wb_value import WBValue


class Image(WBValue):
    def __init__(self, path):
        self.path = path

    def __str__(self):
        return self.path
