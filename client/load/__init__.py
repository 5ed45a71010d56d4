"""The load generator behind `tickring bench`.

`flows` says what is to be offered, `worker` offers it in processes of their own, `generator` starts those and
adds up what they `recorder`ed, `scenarios` ask questions with it, `report` and `page` print the answers.
"""
