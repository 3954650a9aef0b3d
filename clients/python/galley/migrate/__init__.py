"""Makes Galley jobs of what waits in RQ, Celery, BullMQ or Sidekiq: ``galley-migrate``.

It is Python because most jobs of RQ and some of Celery are pickled, which nothing else can read. Nothing that a pickle
names is imported, except a few plain types.
"""
