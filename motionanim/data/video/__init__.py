"""Video files in and out: the frames that a player shows, each always by the same number."""

from motionanim.data.video.index import VideoError as VideoError
from motionanim.data.video.reader import Video as Video
from motionanim.data.video.reader import cover_size as cover_size
from motionanim.data.video.writer import check_video_size as check_video_size
from motionanim.data.video.writer import write_video as write_video
