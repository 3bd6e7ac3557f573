"""The fault harness: real servers and processes, faults by seed, and a witness that none of them can bend.

A row of the catalogue is a test. It takes the fixtures ``stage`` and ``row`` and says what it wants::

    def test_killing_nats_loses_nothing(stage: StageFactory, row: RowFactory) -> None:
        with stage(load=Load(events=400, rate=40), settings={"ack_wait": 5.0}) as scene:
            scene.begin()                        # servers, 2 workers, 2 publishers: they run from now on
            for _ in scene.beats(5, after=1.0):  # five moments, drawn by the seed, while events still come
                scene.cluster.nats[0].kill()
                scene.cluster.nats[0].start()
            verdict = scene.finish(within=120)   # publishers done, all settled, witness and audit asked
        row("F2", "kill -9 nats-server x5").judge(verdict, dup_starts=(verdict.dup_starts, 5 * 16))

What there is:

- ``Cluster`` (cluster.py): 1 or 3 nats-servers, 1 or 3 mongods. ``cluster.nats[i]`` and ``cluster.mongo[i]``
  are ``LocalServer`` (kill, start, pause, resume, wipe); ``stream_leader()`` and ``primary()`` find a victim.
- ``Load`` (workload.py): how many events, how fast, how long handlers take, how often they fail.
  ``Load(app=...)`` names another module with ``build(bus, journal, load)``; ``handlers`` are the names of its
  handlers, ``options`` what it likes.
- ``Crew`` (crew.py): publisher and worker processes. Who dies is started again (a publisher that is done is
  not) and counted in ``deaths``; ``kill("worker")`` kills one by chance. ``environ[role]`` is the environment
  of those started from now on. ``stage(nats_url=..., mongo_url=...)`` sends all of them through a proxy.
- ``Scene`` (scene.py): all of these for one test; ``finish`` gives the ``Verdict``.
- ``Journal`` (journal.py): the witness. Publishers note ``begun``, ``receipt`` (publish returned) and
  ``refused`` (publish raised); handlers note ``start``, ``done`` and ``failed``, and the
  transactional one ``entered`` before it may wait for a document.
- ``Verdict`` (checker.py): accepted, lost, dup_starts, dup_effects and more, from the witness and from the
  database, read beside the library. *Lost* is an accepted event that some handler neither succeeded at (with
  the witness's word for it, and with its effect where the handler is transactional) nor gave up as dead.
- ``Row`` (results.py): writes the line of the results table (``--results FILE`` or ``PYTEST_RESULTS``), then
  asserts lost = 0, effects exactly once, the audit, and every bound given as ``name=(value, limit)``.
- Quick rows carry no marker and belong to the usual tests; ``@pytest.mark.faults`` is for the catalogue.

Seeds: each row prints its seed; ``--seed N`` or ``PYTEST_SEED`` repeats it. What is drawn are the moments and
the victims; how the machine schedules the processes is not.
"""
