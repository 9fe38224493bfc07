"""What real packages do, with fastinit's adapters: ``make frameworks``, in an environment of its own."""
