"""The server as a process, judged from outside: by its replies, and by the files it leaves behind."""
