"""What a server says about which model answers."""

from mirg_jax.chat.completions import Reply
from mirg_jax.files.streams import say


class Served:
    """Notices answers of another model than was asked for, and says so once.

    A gateway may pass requests on to a model of its choice. A server may also have another name for
    the same model, such as one with a date.
    """

    def __init__(self, who: str, asked: str):
        """
        Args:
          who: what answers, for the message: an address, or a file.
          asked: the model's name in requests.
        """
        self._who, self._asked, self._told = who, asked, False

    def other(self, reply: Reply) -> str:
        """Returns the name of the model that answered; "" if it is the one that was asked for."""
        if not reply.model or reply.model == self._asked:
            return ""
        if not self._told:
            self._told = True
            say(
                f"{self._who}: asked for {self._asked!r}, answers as {reply.model!r}; if that is "
                "another model, correct the name or the server's routes"
            )
        return reply.model
