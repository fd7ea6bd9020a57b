"""A client of the control API, written from docs/api.md alone: Python's standard library, and two sockets.

It starts a VM on the first host, waits until it is protected, switches it over, and follows the events of the first host's keeper across a restart of
that, for which it asks with the line "restart" and waits for the line "restarted".
"""

import json
import socket
import sys
import time

START = {"incarnation": 0, "seq": 0}


class Refused(Exception):
    def __init__(self, error):
        super().__init__(json.dumps(error))
        self.code = error["code"]
        self.details = error.get("details", {})


class Keeper:
    def __init__(self, path):
        self.path = path
        self.asked = 0

    def line(self, text):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(60)
            stream.connect(self.path)
            stream.sendall(text.encode() + b"\n")
            with stream.makefile() as answers:
                return json.loads(answers.readline())

    def ask(self, request, **fields):
        self.asked += 1
        answer = self.line(json.dumps({"version": 1, "id": self.asked, "request": request, **fields}))
        assert answer["version"] == 1 and answer["id"] == self.asked, answer
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def carry_out(self, request, **fields):
        answer = self.ask(request, **fields)
        assert answer["answer"] == "begun" and answer["operation"]["kind"] == request, answer
        return self.end(answer["operation"]["id"])

    def end(self, name):
        while True:
            operation = self.ask("operation", operation=name, wait_ms=500)["operation"]
            if operation["state"] == "failed":
                raise Refused(operation["error"])
            if operation["state"] == "done":
                return operation
            if operation["progress"]:
                assert operation["progress"]["unit"] in ("bytes", "milliseconds"), operation

    def follow(self, after, wanted):
        """Reads on until an event of this kind: it, all gaps on the way, and the position behind."""
        gaps = []
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                told = self.ask("events", after=after, wait_ms=5000)
            except (OSError, ValueError):
                # Its keeper is being started anew.
                time.sleep(0.05)
                continue
            gaps += [told["gap"]] if told["gap"] else []
            after = told["next"]
            found = [event for event in told["events"] if event["event"] == wanted]
            if found:
                return found[-1], gaps, after
        raise AssertionError(f"{self.path} has not said '{wanted}'")


def refused(code, ask):
    try:
        answer = ask()
    except Refused as refusal:
        assert refusal.code == code, refusal
        return refusal.details
    raise AssertionError(f"this is not refused with {code}: {answer}")


def main():
    a, b = (Keeper(path) for path in sys.argv[1:3])

    # What makes no sense is said to make none.
    assert refused("bad_request", lambda: a.ask("stop", now=True))["field"] == "now"
    answer = a.line('{"version":2,"request":"status"}')
    assert answer["error"] == {"code": "unsupported_version", "details": {"asked": 2, "spoken": [1]}}, answer
    refused("not_running_here", lambda: a.ask("switchover"))

    # The answer to the first is lost, so it is asked for again.
    a.ask("start", token="first")
    started = a.ask("start", token="first")["operation"]["id"]
    assert a.end(started)["outcome"]["event"] == "booted"
    assert refused("token_used", lambda: a.ask("protect", token="first"))["operation"] == started
    assert a.carry_out("protect")["state"] == "done"
    status = a.ask("status")["status"]
    assert (status["role"], status["protection"]) == ("primary", "protected"), status
    event, gaps, position = a.follow(START, "protected")
    assert event["backup"] == "b" and event["host"] == "a" and not gaps, (event, gaps)

    moved = a.carry_out("switchover")
    assert moved["outcome"]["to"] == "b", moved
    b.follow(START, "took_over")
    _, gaps, position = a.follow(position, "stood_down")
    assert not gaps, gaps
    b.carry_out("protect")

    # The keeper of the host that is the backup now is started anew.
    print("restart", flush=True)
    assert sys.stdin.readline() == "restarted\n"
    event, gaps, behind = a.follow(position, "backup_ready")
    assert [(gap["cause"], gap["after"]) for gap in gaps] == [("restart", position)], gaps
    assert event["incarnation"] == gaps[0]["incarnation"] > position["incarnation"], event
    assert behind["incarnation"] == event["incarnation"]
    refused("earlier_keeper", lambda: a.ask("operation", operation=moved["id"]))
    # It goes on from there as if nothing had been.
    told = a.ask("events", after=behind)
    assert told["gap"] is None, told
    kinds = [operation["kind"] for operation in b.ask("operations")["operations"]]
    assert kinds == ["protect"], kinds
    assert b.carry_out("stop")["outcome"]["event"] == "stopped"
    print("done", flush=True)


main()
