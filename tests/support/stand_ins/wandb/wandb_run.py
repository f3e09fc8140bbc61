from recording import record


class Run:
    def log(self, values, step):
        record("log", step=step, values={k: v if isinstance(v, (int, float)) else str(v) for k, v in values.items()})

    def finish(self):
        record("finish")
