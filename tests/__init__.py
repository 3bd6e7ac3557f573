"""The tests; a package so that helpers are imported as ``tests.polling`` and nothing else can be."""
